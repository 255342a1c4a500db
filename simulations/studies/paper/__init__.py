"""The paper's first experiments and open questions (arXiv 2411.09434), answered on one page."""
