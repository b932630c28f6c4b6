"""The explorer: streamlit run streamlit_app.py"""

import streamlit as st

from sae_explore.views import shell

st.set_page_config(page_title="SAE Explore", page_icon=":material/scatter_plot:", layout="wide")
shell.run()
