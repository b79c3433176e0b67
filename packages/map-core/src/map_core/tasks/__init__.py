"""What is done with the engine and with finished runs: pretraining, classification, evaluation, features, weights."""
