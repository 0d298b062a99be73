"""Plots, for pages, for files and for terminals: what is drawn is said once.

`charts` computes places; `figures` are the plots of this program; `files` and `text` put them into files and terminals.
"""
