"""Messages to a prompt: the model's own chat template, tools, and the reasoning switch."""
