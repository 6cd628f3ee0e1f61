"""Text in and out: detokenizer, chat template, printed stream."""
