"""Tokens as HTML and numbers as plotly figures: pure functions, no Streamlit."""
