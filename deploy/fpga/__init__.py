"""The accelerator of kernels/rtl from the host's side: its instructions, its compiler, its model.  See README.md."""
