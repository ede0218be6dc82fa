// Images from a graph of a bundle in C++, written as PGM or PPM, one below the other. ORT: where ONNX Runtime is unpacked.
//   g++ -std=c++17 -O2 embed.cpp -I ORT/include -L ORT/lib -Wl,-rpath,ORT/lib -lonnxruntime -o embed
//   ./embed digits.bundle/graphs/sid1.fp32.onnx 3,1,4 digits.pgm [noise.f32]

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <regex>
#include <sstream>

// The graph's metadata has the names of its classes, a line for each, where they have names.
std::map<std::string, int64_t> read_names(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto lines = session.GetModelMetadata().LookupCustomMetadataMapAllocated("fewstep.input.labels.names", allocator);
  std::map<std::string, int64_t> names;
  std::istringstream stream(lines ? lines.get() : "");
  for (std::string name; std::getline(stream, name);) names.emplace(name, names.size());
  return names;
}

std::vector<int64_t> parse_labels(const std::string& text, const std::map<std::string, int64_t>& names) {
  std::vector<int64_t> labels;
  std::istringstream stream(text + ",");
  for (std::string label; std::getline(stream, label, ',');) {
    if (!names.count(label) && !std::regex_match(label, std::regex("\\d{1,9}")))
      throw std::invalid_argument("labels are names or whole numbers such as 3,1,4, got " + text);
    labels.push_back(names.count(label) ? names.at(label) : std::stoll(label));
  }
  return labels;
}

void draw_noise(std::vector<float>& noise) {
  std::mt19937 engine(std::random_device{}());
  std::normal_distribution<float> normal;
  for (float& value : noise) value = normal(engine);
}

void read_noise(std::vector<float>& noise, const std::string& path) {
  std::ifstream raw(path, std::ios::binary);
  raw.read(reinterpret_cast<char*>(noise.data()), noise.size() * sizeof(float));
  if (!raw || raw.peek() != EOF) throw std::runtime_error(path + " does not hold " + std::to_string(noise.size()) + " floats");
}

int main(int argc, char** argv) try {
  if (argc < 4 || argc > 5) throw std::invalid_argument("usage: embed GRAPH LABELS IMAGES [NOISE]");
  const Ort::Env env(ORT_LOGGING_LEVEL_FATAL);  // what goes wrong is thrown; said once is enough
  Ort::Session session(env, std::filesystem::path(argv[1]).c_str(), Ort::SessionOptions{});
  auto labels = parse_labels(argv[2], read_names(session));
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // (B, draws, C, H, W)
  if (shape.size() != 5) throw std::invalid_argument(std::string(argv[1]) + " does not hold a whole plan");
  shape[0] = labels.size();
  std::vector<float> noise(shape[0] * shape[1] * shape[2] * shape[3] * shape[4]);
  argc == 5 ? read_noise(noise, argv[4]) : draw_noise(noise);

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  Ort::Value inputs[] = {Ort::Value::CreateTensor(memory, noise.data(), noise.size(), shape.data(), shape.size()),
                         Ort::Value::CreateTensor(memory, labels.data(), labels.size(), shape.data(), 1)};
  const char *names[] = {"noise", "labels"}, *wanted[] = {"images"};
  const auto images = session.Run(Ort::RunOptions{}, names, inputs, 2, wanted, 1);
  const auto size = images[0].GetTensorTypeAndShapeInfo().GetShape();  // (B, H, W, C)
  std::ofstream file(argv[3], std::ios::binary);
  file << (size[3] == 1 ? "P5 " : "P6 ") << size[2] << ' ' << size[0] * size[1] << " 255\n";
  if (!file.write(images[0].GetTensorData<char>(), size[0] * size[1] * size[2] * size[3]).flush())
    throw std::runtime_error(std::string(argv[3]) + " cannot be written");
} catch (const std::exception& error) {
  std::cerr << "embed: " << error.what() << '\n';
  return 2;
}
