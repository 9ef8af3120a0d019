"""What was submitted, where does it stand?"""
