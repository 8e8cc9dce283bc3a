"""Text and images to images: pipelines of diffusers, drawn with and without merging."""
