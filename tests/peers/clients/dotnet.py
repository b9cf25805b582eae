"""One GET with .NET's HttpClient, in the runtime of the package dotnetcore2: prints the status."""

import json
import os
import sys
import tempfile

import dotnetcore2
from clr_loader import get_coreclr
from pythonnet import set_runtime

SETTINGS = {
    "runtimeOptions": {
        "tfm": "netcoreapp3.1",
        "framework": {"name": "Microsoft.NETCore.App", "version": "3.1.0"},
        "configProperties": {"System.Globalization.Invariant": True},
    }
}

with tempfile.NamedTemporaryFile("w", suffix=".json") as settings:
    json.dump(SETTINGS, settings)
    settings.flush()
    root = os.path.join(os.path.dirname(dotnetcore2.__file__), "bin")
    set_runtime(get_coreclr(runtime_config=settings.name, dotnet_root=root))
    import clr

clr.AddReference("System.Net.Http")
from System.Net.Http import HttpClient  # noqa: E402

print(int(HttpClient().GetAsync(sys.argv[1]).Result.StatusCode))
