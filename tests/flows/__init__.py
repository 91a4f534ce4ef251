"""The walk and its faults, end to end, on either column."""
