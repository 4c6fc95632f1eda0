"""How a title finds its document beyond the exact rule: a resolver a file, tried in the order that the user gives."""
