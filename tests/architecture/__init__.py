"""Is the house still the house that was drawn?"""
