"""What a reader looks at: terminal tables, CSV and Markdown, and one self-contained HTML page.

Everything is made from a `StudyResults` document alone. Nothing here runs a model or computes a new score.
"""
