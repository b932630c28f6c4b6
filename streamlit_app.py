"""The explorer: streamlit run streamlit_app.py"""

import streamlit as st

from sae_explore.views import shell

st.set_page_config(page_title="SAE Explore", page_icon="🔶", layout="wide", initial_sidebar_state=256)
shell.run()
