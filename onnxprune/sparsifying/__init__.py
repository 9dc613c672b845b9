"""Stage eight: single weights become zero, and those that stay take over what they did."""
