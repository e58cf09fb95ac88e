"""What a teacher says of each training row, kept on the disk: one pass of it serves every trial of a sweep."""
