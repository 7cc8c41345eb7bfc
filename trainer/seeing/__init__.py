"""What a pre-trained model makes of photographs, to look at: reconstructions, features as colours, attention."""

KINDS = ("reconstructions", "features", "attention")
"""The kinds of pictures that `draw.draw_pictures` makes, in its order."""
