"""Do the unlabelled images help?"""
