"""What the backends on a GPU share: a step's inputs and outputs, pictures and frames in its memory."""
