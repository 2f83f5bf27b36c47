"""Where people write and rank: a labeling store, its services, and a thin Streamlit app."""
