"""Training: from the corpus to a base model, and from labels to an assistant."""
