"""The stubs in the package are those of the contract."""
import pathlib

import pytest
from conftest import ROOT
from google.protobuf import descriptor_pb2

from rewarm.v1 import admin_pb2, reward_pb2

protoc = pytest.importorskip("grpc_tools.protoc")


@pytest.mark.parametrize("stub", [reward_pb2, admin_pb2], ids=["reward", "admin"])
def test_the_stubs_are_those_of_the_contract(stub, tmp_path):
    output = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={output}", stub.DESCRIPTOR.name]) == 0
    [file] = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(output).read_bytes()).file
    ours = descriptor_pb2.FileDescriptorProto()
    stub.DESCRIPTOR.CopyToProto(ours)
    assert without_json_names(file) == without_json_names(ours), "run clients/python/generate"


def without_json_names(file):
    """Some compilers write them out."""
    def strip(message):
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            strip(nested)
    for message in file.message_type:
        strip(message)
    return file
