"""The commands: each module defines its flags (`define`) and does its job (`main`)."""
