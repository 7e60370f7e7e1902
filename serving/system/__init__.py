"""The machine: cores, memory, sockets, signals, processes. It knows no model and no protocol."""
