"""`python -m appliance` is `scanside`."""

from appliance.cli import main

main()
