"""What H holds, token by token, as a web page, as JSON, and in the terminal."""
