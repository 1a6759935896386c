"""Teachers: where they come from, how they are asked, and their outputs kept on disk."""
