"""Which of two explanations do readers prefer? Blinded pairs on a page, and what came back."""
