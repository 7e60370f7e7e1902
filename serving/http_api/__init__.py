"""What the HTTP port answers: tensors, pictures, pages, their description. No sockets."""
