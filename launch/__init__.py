"""The commands of ``ignn`` as scripts of a checkout."""
