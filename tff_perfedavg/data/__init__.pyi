from tff_perfedavg.data.user_store import Description as Description
from tff_perfedavg.data.user_store import Rows as Rows
from tff_perfedavg.data.user_store import User as User
from tff_perfedavg.data.user_store import UserStore as UserStore
