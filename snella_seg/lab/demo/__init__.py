"""The embedded demo: generated scenes, a small ViT taught by day and adapted to the night."""
