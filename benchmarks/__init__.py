"""Measurements of speed: beside peers, beside other commits, and of the loop alone; nothing else imports them."""
