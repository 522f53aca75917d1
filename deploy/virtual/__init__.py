"""Boards that QEMU plays: real Linux, real sshd, real consoles, and times that mean nothing.  See README.md."""
