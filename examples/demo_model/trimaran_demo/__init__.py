"""The demo model: a small DeepSeek-V3 trained from scratch on data these scripts generate."""
