"""Events of a generation as each dialect's answers, whole and streamed."""
