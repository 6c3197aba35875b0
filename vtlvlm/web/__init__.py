"""What a local server of the project needs: rules against foreign pages and machines, a private store of uploads, the start and the end."""
