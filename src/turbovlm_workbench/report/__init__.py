"""What people read: the table, the trade-off plot, merge maps and one self-contained page."""
