"""The model: encoders of images and texts, the unified decoder, and the likelihood that compares what they give."""
