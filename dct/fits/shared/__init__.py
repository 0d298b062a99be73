"""What fits have in common: starts, orthogonalisation, the loop, strengths, responses, singular vectors."""
