"""fastembed with a model of its own making, as the export's README says: FOLDER NAME DIMENSIONS, texts as JSON."""

import json
import sys

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

folder, name, dimensions, texts = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
TextEmbedding.add_custom_model(
    model=name,
    pooling=PoolingType.DISABLED,
    normalization=False,
    dim=dimensions,
    sources=ModelSource(url="local"),
    model_file="model.onnx",
)
model = TextEmbedding(name, specific_model_path=folder, threads=1)
print(json.dumps([vector.tolist() for vector in model.embed(texts)]))
