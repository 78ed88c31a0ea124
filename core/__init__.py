"""Parts shared by every pipeline. Importing a module of this package never starts Jittor."""
