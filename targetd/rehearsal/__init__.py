"""An initiator that plays what a Windows host does at a target, and says what Windows would see."""
