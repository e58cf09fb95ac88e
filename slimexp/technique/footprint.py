"""What a technique needs in memory of the weights that it works on."""


class Footprint:
    """Base of techniques that says how they hold weights."""

    @property
    def keeps_stored_type(self) -> bool:
        """Whether it works on 16-bit weights as they are stored, and computes in float32 on the part at hand."""
        return False

    @property
    def changes_weights(self) -> bool:
        """Whether it changes weights themselves, beneath what it attaches to them."""
        return True
