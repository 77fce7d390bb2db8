"""`python -m rwkv_chat` is `rwkv-chat`."""

import sys

from rwkv_chat.cli import main

sys.exit(main())
