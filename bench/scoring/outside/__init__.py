"""Pictures made elsewhere: reading them, their order, and whether it is the right one."""
