"""Hook of schemathesis: appends the operation and the status of each response to the file `statuses`.

Its own report comes from a thread that a slow machine does not let finish.
"""

import schemathesis


@schemathesis.hook
def after_call(context, case, response):
    with open("statuses", "a") as file:
        file.write(f"{case.operation.label}\t{response.status_code}\n")
