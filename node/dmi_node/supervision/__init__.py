"""Role processes: started, listened to, watched, ended."""
