"""`kdc doctor`: what is installed on this machine, what really works, and what to do about what does not. Works on an
install that only serves."""
